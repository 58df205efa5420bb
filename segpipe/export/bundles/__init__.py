"""Models that come with a description of their own: bioimage.io model folders and MONAI bundles."""
