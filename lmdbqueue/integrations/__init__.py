"""Integrations with the frameworks that programs already use. Each module has an extra of its own.

Nothing else in the package imports these, and they do not import each other. Each has a page in ``docs/integrations``.
(Sending items over HTTP and MQTT is a part of ``forward``.)

=================  ==========================================================================================
``logging``        ``DurableHandler`` and ``DurableListener``: log records that survive the program
``prometheus``     ``QueueCollector``: figures for prometheus_client, read at each scrape
``otel``           ``observe``: figures for OpenTelemetry, read at each collection
``huey``           ``LmdbHuey``, ``LmdbStorage``: Huey whose workers may die
``kombu``          a transport of kombu: Celery without a broker
``opentelemetry``  exporters whose telemetry survives; trace context in headers of items
``_broker``        the directory behind a connection of ``kombu``
``_later``         pushes that a thread makes: for ``logging`` and ``opentelemetry``
=================  ==========================================================================================
"""
