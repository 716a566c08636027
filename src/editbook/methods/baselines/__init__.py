"""What editing without any control gives: the ground that methods stand on."""
