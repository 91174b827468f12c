"""One VMAS world as a picture in memory, by VMAS's own drawing code."""
