"""What the families of volumes share: files of voxels, read and written by boxes."""
