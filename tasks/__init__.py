"""What Ray executes: one module per stage, a thin program over ``dora_core``."""
