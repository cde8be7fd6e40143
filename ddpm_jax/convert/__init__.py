"""Parameters from and to other programs."""
