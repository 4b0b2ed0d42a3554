-- One database for each service.
CREATE DATABASE ingest;
CREATE DATABASE preprocess;
CREATE DATABASE train;
