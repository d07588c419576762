"""Files, processes and threads: the services of the operating system, and how processes share them.

===============  ===============================================================
``signals``      being told to stop
``session``      which processes are alive, and which transaction is known to be on the disk
``directory``    file names, creation, the directory lock
``strangers``    which other users may write to the directory
``bell``         waking sleepers of other processes
``owners``       the holders of leases, and whether they live
``presence``     whether a directory and its files are still the ones that were opened
``disk``         fsync, allocation, the owner of a new file, the system's errors
``departures``   work deferred from the garbage collector and from signal handlers
``flock``        locks that die with their process
``threads``      how a thread waits for another, or has one work beside it
``fork``         the steps of each module at a fork, and their order
``descriptors``  opening relative to an open directory, closing immediately
===============  ===============================================================
"""
