"""The asset graph: thin bodies of paths in, one library call, result out."""
