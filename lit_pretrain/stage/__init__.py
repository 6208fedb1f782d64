"""Stage: the LightningModule that every kind of training shares."""
