"""Files, processes and threads: what the operating system gives, and how each process shares it.

===============  ===============================================================
``signals``      being told to stop
``session``      who is alive, and what is known to be on the disk
``directory``    file names, creation, the directory lock
``strangers``    who else may write to it
``bell``         waking sleepers of other processes
``owners``       who holds leases, and whether it lives
``presence``     whether a directory and its files are still those that were opened
``disk``         fsync, allocation, whose a new file is, the system's errors
``departures``   work put off, out of the collector and signals' handlers
``flock``        locks that die with their process
``threads``      a thread that waits for another, or has one work beside it
``fork``         what each module does at a fork, in which order
``descriptors``  opening in a directory that is open, closing at once
===============  ===============================================================
"""
