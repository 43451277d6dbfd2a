"""SLO-aware, cost-minimal model serving on AWS.

core/       pure policy: batching, planning, lifecycle, spill-over, SLO and cost accounting
protocol/   the wire formats clients speak (Open Inference Protocol v2, SageMaker invocations)
ports.py    the interfaces the use cases need
messages.py what crosses a process boundary, versioned
adapters/   one module per external technology
settings.py the only reader of the environment; wiring.py the only maker of clients
errors.py   the exception tree; telemetry.py the one logger, tracer and metrics
"""

__version__ = "0.1.0"
