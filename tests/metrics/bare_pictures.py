"""Pictures as torch-fidelity's own command reads them."""

import numpy as np
import torch


class Pictures(torch.utils.data.Dataset):
    """uint8 pictures as torch-fidelity wants them: bare [C, H, W] tensors."""

    def __init__(self, images_BHWC: np.ndarray):
        self.images = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).contiguous()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]
