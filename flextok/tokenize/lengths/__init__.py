"""How many tokens an image needs: the length policies. A new one is one file here."""
