"""Integrations with the frameworks that programs already use. Each module has an extra of its own.

Nothing else imports these, and they do not import each other. Each has a page in ``docs/integrations``. The first two
are packages with a map of their own.
(Sending items over HTTP and MQTT is a part of ``forward``.)

=================  ==========================================================================================
``huey``           ``LmdbHuey``, ``LmdbStorage``: Huey whose workers may die
``kombu``          a transport of kombu: Celery without a broker
``logging``        ``DurableHandler`` and ``DurableListener``: log records that survive the program
``prometheus``     ``QueueCollector``: figures for prometheus_client, read at each scrape
``otel``           ``observe``: figures for OpenTelemetry, read at each collection
``opentelemetry``  exporters whose telemetry survives; trace context in headers of items
``_options``       the options with which a directory is opened
``_later``         pushes that a thread makes: for ``logging`` and ``opentelemetry``
=================  ==========================================================================================
"""
