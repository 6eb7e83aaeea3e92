"""Decoders: codes to latents. A new kind is one file here."""
