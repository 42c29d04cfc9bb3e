"""Tables from records: no torch, no Hydra, and the only place that knows per cent and rounding."""
