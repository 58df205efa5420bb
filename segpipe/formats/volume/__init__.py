"""Code shared by the formats of volumes: files of voxels, read and written by boxes."""
