"""M0: read a checkpoint, build the model, and know what it costs before any inference."""
