"""This package inside other ones; never imported by the package itself."""
