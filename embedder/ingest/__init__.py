"""An image and what its sender says about it become a point of the store."""
