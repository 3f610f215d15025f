"""At what rates detectors of triggered pictures are judged (measures/rejection.py): without torch, for the report too."""

SHARES = {"at1": 0.01, "at50": 0.5}  # of triggered pictures
RATES = {"fpr1": 0.01, "fpr5": 0.05}
ROC = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # false positive rates of the curve that is kept
