"""Registered Keras layers that the networks are built from."""

from kerasseg.layers.background import NullBackground as NullBackground
from kerasseg.layers.convolution import Conv2D as Conv2D
from kerasseg.layers.cropping import CropLike as CropLike
from kerasseg.layers.dilation import AtrousPadding2D as AtrousPadding2D
from kerasseg.layers.dilation import AtrousPooling2D as AtrousPooling2D
from kerasseg.layers.dilation import ScaledAdd as ScaledAdd
from kerasseg.layers.dilation import Subsampling2D as Subsampling2D
from kerasseg.layers.dropout import Dropout as Dropout
from kerasseg.layers.geometry import Geometry as Geometry
from kerasseg.layers.geometry import coordinate_map as coordinate_map
from kerasseg.layers.geometry import crop_offset as crop_offset
from kerasseg.layers.geometry import receptive_field as receptive_field
from kerasseg.layers.local_response import LocalResponseNormalization as LocalResponseNormalization
from kerasseg.layers.minimum_size import MinimumSize as MinimumSize
from kerasseg.layers.normalization import BatchNormalization as BatchNormalization
from kerasseg.layers.padding import PadToGrid as PadToGrid
from kerasseg.layers.pooling import CeilMaxPooling2D as CeilMaxPooling2D
from kerasseg.layers.preprocessing import PREPROCESSING as PREPROCESSING
from kerasseg.layers.preprocessing import Preprocessing as Preprocessing
from kerasseg.layers.pyramid import RateCheck as RateCheck
from kerasseg.layers.resizing import AlignedResize as AlignedResize
from kerasseg.layers.resizing import AlignedResizeLike as AlignedResizeLike
from kerasseg.layers.scaling import ChannelScale as ChannelScale
from kerasseg.layers.standardization import Normalization as Normalization
from kerasseg.layers.upsampling import BilinearInitializer as BilinearInitializer
from kerasseg.layers.upsampling import BilinearUpsampling as BilinearUpsampling
