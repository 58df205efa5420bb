"""DICOM series: found in folders, audited, read slice by slice; masks on their own grid."""
