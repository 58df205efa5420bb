"""Trained folders of nnU-Net: what their files say, the network of the plans, and its export."""
