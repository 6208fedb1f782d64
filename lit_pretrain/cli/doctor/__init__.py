"""What `lit_pretrain doctor` examines: the install, the machine, the folders."""
