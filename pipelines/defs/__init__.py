"""Bodies of the stages: paths in, one library call, result out. What needs torch or Ray is imported where it runs."""
