// Runs a piece of work when it goes out of scope, however that happens.
#pragma once

#include <utility>

namespace thaw {

template <typename Work>
class Finally {
 public:
  explicit Finally(Work work) : work_(std::move(work)) {}
  Finally(const Finally&) = delete;
  Finally& operator=(const Finally&) = delete;
  ~Finally() { work_(); }  // must not throw

 private:
  Work work_;
};

}  // namespace thaw
