"""Classification networks in the form that segmentation needs: named functions from tensors to feature maps."""
