"""Arrays -> classifiers; knows no files of images and no cache."""
