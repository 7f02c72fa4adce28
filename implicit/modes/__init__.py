"""The backward modes of this library, one file each."""
