"""Notices: what of the libraries users are spared."""

import logging
import warnings


def quiet_libraries() -> None:
    """Silence what users cannot act on."""
    warnings.filterwarnings(
        "ignore", message=r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*"
    )
    warnings.filterwarnings(
        "ignore", message=r".*does not have many workers which may be a bottleneck.*"
    )
    warnings.filterwarnings(
        "ignore", message=r".*Trying to infer the `batch_size` from an ambiguous collection.*"
    )
    warnings.filterwarnings("ignore", message=r".*The `srun` command is available.*")
    # What is logged was summed over ranks before (torchmetrics), buffers never change, and every
    # rank reads its share of rows by number.
    warnings.filterwarnings(
        "ignore", message=r".*It is recommended to use `self.log\(.*sync_dist=True\)`.*"
    )
    warnings.filterwarnings("ignore", message=r".*`broadcast_buffers` is deprecated.*")
    logging.getLogger("litdata.streaming.dataset").addFilter(
        lambda record: "disabled the `drop_last` option" not in record.getMessage()
    )
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
