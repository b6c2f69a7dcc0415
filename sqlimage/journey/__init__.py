"""The journeys: from a medium to an image, back to a medium, and out to files."""
