"""What lmdbqueue costs, beside bare LMDB and beside other persistent queues for Python.

Run it from the repository root: ``python -m bench``. ``README.md`` beside this file tells what is
measured and what the words mean. The map, imports go down only:

===============  ===============================================================================
``__main__``     starts ``cli``, and nothing else: every process of a measurement imports it
``cli``          the command line; the order of a run
``figures``      what other pages quote of the newest full run, written into them
``plots``        pictures of the results
``tables``       the results as Markdown
``goals``        what the project wants to reach, as ratios within one run
``workloads``    what is measured, one file for each
``measure``      interleaved rounds, fresh directories, medians
``team``         other processes that open queues, started once and told what to do
``peers``        one adapter for each queue, all with the same few verbs
``proof``        whether an adapter is a queue at all
``syncs``        apart from a run: how often each adapter syncs, by strace
``writes``       apart from a run: what calls on PostgreSQL write, counted
``bloat``        apart from a run: what an hour of jobs leaves in PostgreSQL
``items``        what is pushed
``environment``  the facts of the machine that stand beside the figures
===============  ===============================================================================
"""
