"""Problems on which methods are judged: embedded data, small models, and how they are trained again."""
