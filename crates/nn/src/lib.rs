//! Genus: the blocks that every model of the family is built from
