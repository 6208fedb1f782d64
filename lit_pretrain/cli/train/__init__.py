"""What `fit`, `posttrain` and `finetune` share."""
