"""Finding candidates without scoring every example: a compressed index of gradients, and lexical prefilters."""
