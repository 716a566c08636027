"""Methods that train nothing and tune nothing."""
