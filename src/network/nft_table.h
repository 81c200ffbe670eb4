// The one nft table of an instance: translates between the fixed and the unique addresses, and
// filters. Loaded once; no rule and no element is added or removed for a replica.
#pragma once

namespace thaw::network {

// Loads the table into the calling thread's network namespace. Where one of the same instance
// exists, its rules are replaced in one transaction, so that no packet of a living replica passes
// between two tables.
void load_table(int instance);
// No error when there is none.
void delete_table(int instance);

}  // namespace thaw::network
