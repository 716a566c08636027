"""Methods that edit inside a mask, and those that find it."""
