"""What programs use today, beside the integrations, in one run: ``python -m bench.integrations logging`` and so on.

Owns: one module for each integration. Law: ratios within one run; nothing here is a test. Must not know: the other
benches.
"""
