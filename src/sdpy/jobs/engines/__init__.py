"""Who computes the batches: this process, several devices, or the nodes of a Ray cluster."""
