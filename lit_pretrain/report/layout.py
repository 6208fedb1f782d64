"""Layout: TensorBoard's custom-scalars page, which opens on the curves one looks at first."""

from collections.abc import Sequence
from typing import Any, Optional


def layout(sources: Sequence[str], forecast: Optional[str] = None) -> dict[str, Any]:
    """Categories and charts for `SummaryWriter.add_custom_scalars`.

    Args:
        sources: Names of the mixture's sources.
        forecast: The validation metric that a law forecasts; None where none does.
    """
    chart = ["Multiline"]
    foreseen = {
        "validation, and a run of this size that ends here": [*chart, [f"{forecast}$", "forecast/loss", "forecast/low", "forecast/high"]]
    }
    return {
        **({} if forecast is None else {"Forecast": foreseen}),
        "Loss": {
            "train and validation (nats per token)": [*chart, ["train/loss", "val/loss"]],
            "bits per byte": [*chart, ["val/bits_per_byte$"]],
            "train by source": [*chart, [f"train_loss/{s}" for s in sources]],
            "validation bits per byte by source": [*chart, [f"val_bits_per_byte/{s}" for s in sources]],
        },
        "Optimisation": {
            "gradient norm before clipping": [*chart, ["train/grad_norm$", "train/grad_norm_max"]],
            "learning rates": [*chart, ["lr/.*"]],
        },
        "Speed": {
            "tokens per second": [*chart, ["throughput/tokens_per_second"]],
            "share of step time": [*chart, ["time/data_fraction", "time/compute_fraction", "time/other_fraction"]],
        },
        "Data": {
            "realised mixture": [*chart, [f"mixture/{s}" for s in sources]],
            "tokens": [*chart, ["progress/tokens"]],
        },
    }
