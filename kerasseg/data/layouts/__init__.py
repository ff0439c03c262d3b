"""The data sets as they lie on disk: one file for each layout; `kerasseg.data.DATA_SETS` names them all."""
