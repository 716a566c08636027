"""Methods whose model was trained, or trained further, for editing."""
