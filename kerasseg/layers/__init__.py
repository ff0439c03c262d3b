"""Registered Keras layers that the networks are built from."""

from kerasseg.layers.background import NullBackground as NullBackground
from kerasseg.layers.convolution import Conv2D as Conv2D
from kerasseg.layers.cropping import CropLike as CropLike
from kerasseg.layers.dropout import Dropout as Dropout
from kerasseg.layers.geometry import coordinate_map as coordinate_map
from kerasseg.layers.geometry import crop_offset as crop_offset
from kerasseg.layers.local_response import LocalResponseNormalization as LocalResponseNormalization
from kerasseg.layers.normalization import BatchNormalization as BatchNormalization
from kerasseg.layers.pooling import CeilMaxPooling2D as CeilMaxPooling2D
from kerasseg.layers.preprocessing import PREPROCESSING as PREPROCESSING
from kerasseg.layers.preprocessing import Preprocessing as Preprocessing
from kerasseg.layers.scaling import ChannelScale as ChannelScale
from kerasseg.layers.upsampling import BilinearInitializer as BilinearInitializer
from kerasseg.layers.upsampling import BilinearUpsampling as BilinearUpsampling
