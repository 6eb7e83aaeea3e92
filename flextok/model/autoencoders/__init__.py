"""Autoencoders: images to latents and back. A new kind is one file here."""
