"""Methods that train one model for all kinds of edits."""
