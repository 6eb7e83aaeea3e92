"""The Dagster code location: thin assets over the library `flextok`, and the `flextok` command."""
