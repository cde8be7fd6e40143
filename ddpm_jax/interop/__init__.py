"""Other programs' models as our parameters and back."""
