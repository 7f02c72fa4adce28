"""The methods of this library, a file each."""
