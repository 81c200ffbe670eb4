// The page service against a real userfaultfd: the test plays CRIU on the socket and the restored
// process in one.
#include "checkpoint/page_service.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "checkpoint/rpc.pb.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::checkpoint {
namespace {

constexpr std::uint64_t kPage = kPageSize;
constexpr std::uint64_t kPages = 512;

std::uint64_t word_of(std::uint64_t page) { return page * 0x9E3779B97F4A7C15ull + 1; }

// Without glibc's: that holds malloc's locks while the kernel waits for the service, which lives in
// this process here and allocates.
pid_t plain_fork() { return static_cast<pid_t>(::syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0)); }

void append(std::string& image, const google::protobuf::MessageLite& message) {
  std::string bytes = message.SerializeAsString();
  std::uint32_t length = static_cast<std::uint32_t>(bytes.size());
  image.append(reinterpret_cast<const char*>(&length), sizeof length);
  image += bytes;
}

class PageServiceTest : public ::testing::Test {
 protected:
  PageServiceTest() : base("/tmp/thaw-pages-" + random_hex()) {
    make_directories(base);
    memory = static_cast<char*>(::mmap(nullptr, 2 * kPages * kPage, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    uffd = Fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC)));
    struct uffdio_api api {};
    api.api = UFFD_API;
    api.features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |
                   UFFD_FEATURE_EVENT_UNMAP;
    check(::ioctl(uffd.get(), UFFDIO_API, &api), "UFFDIO_API");
    struct uffdio_register range {};
    range.range = {reinterpret_cast<std::uint64_t>(memory), kPages * kPage};
    range.mode = UFFDIO_REGISTER_MODE_MISSING;
    check(::ioctl(uffd.get(), UFFDIO_REGISTER, &range), "UFFDIO_REGISTER");
    write_images();
  }
  ~PageServiceTest() override {
    uffd.reset();
    service.reset();
    ::munmap(memory, 2 * kPages * kPage);
    remove_tree(base);
  }

  // Pages 0..99 and 200..511 are stored, 100..199 are a hole. Page i begins with word_of(i).
  void write_images() {
    std::string pages(412 * kPage, '\0');
    std::uint64_t at = 0, start = reinterpret_cast<std::uint64_t>(memory);
    auto put = [&](std::uint64_t page) {
      std::uint64_t word = word_of(page);
      std::memcpy(pages.data() + at * kPage, &word, sizeof word);
      std::memcpy(pages.data() + at * kPage + kPage - sizeof word, &word, sizeof word);
      ++at;
    };
    for (std::uint64_t page = 0; page < 100; ++page) put(page);
    for (std::uint64_t page = 200; page < kPages; ++page) put(page);
    write_file(base + "/pages-1.img", pages);
    std::string pagemap(8, 'm'), mm(8, 'm');
    rpc::PagemapHead head;
    head.set_pages_id(1);
    append(pagemap, head);
    for (auto [page, count] : {std::pair<std::uint64_t, std::uint64_t>{0, 100}, {200, 312}}) {
      rpc::PagemapEntry entry;
      entry.set_vaddr(start + page * kPage);
      entry.set_compat_nr_pages(static_cast<std::uint32_t>(count));
      entry.set_nr_pages(count);
      entry.set_flags(2 | 4);
      append(pagemap, entry);
    }
    write_file(base + "/pagemap-7.img", pagemap);
    rpc::Mm layout;
    rpc::Vma* vma = layout.add_vmas();
    vma->set_start(start);
    vma->set_end(start + kPages * kPage);
    append(mm, layout);
    write_file(base + "/mm-7.img", mm);
  }

  void begin(std::vector<TouchedRange> working_set = {}, bool exact = false,
             bool background = false) {
    service = std::make_unique<PageService>(
        base, base, std::move(working_set), exact, background,
        PageServiceCallbacks{[this](int) { ++held; }, [this] { uffd.reset(); },
                             [](const std::string& why) { FAIL() << why; }});
    Fd socket(check(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, (base + "/lazy-pages.socket").c_str());
    check(::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address),
          "connect");
    std::int32_t pid = 7, zombie = -8, finished = 0x52535446;
    check(::send(socket.get(), &zombie, sizeof zombie, 0), "send");
    check(::send(socket.get(), &pid, sizeof pid, 0), "send");
    char byte = 0;
    iovec data{&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof(int));
    int fd = uffd.get();
    std::memcpy(CMSG_DATA(part), &fd, sizeof fd);
    check(::sendmsg(socket.get(), &message, 0), "sendmsg");
    check(::send(socket.get(), &finished, sizeof finished, 0), "send");
  }

  std::uint64_t read_word(std::uint64_t page, std::uint64_t end = 0) const {
    std::uint64_t word;
    std::memcpy(&word, memory + page * kPage + (end ? kPage - sizeof word : 0), sizeof word);
    return word;
  }
  std::uint64_t right_word(std::uint64_t page) const {
    return page >= 100 && page < 200 ? 0 : word_of(page);
  }
  void expect_all_right() {
    for (std::uint64_t page = 0; page < kPages; ++page) {
      ASSERT_EQ(read_word(page), right_word(page)) << page;
      ASSERT_EQ(read_word(page, 1), right_word(page)) << page;
    }
  }

  std::string base;
  char* memory;
  Fd uffd;
  std::unique_ptr<PageService> service;
  std::atomic<int> held{0};
};

TEST_F(PageServiceTest, EveryPageIsRightAndHolesAreZero) {
  begin();
  for (std::uint64_t page = kPages; page-- > 0;)
    ASSERT_EQ(read_word(page), right_word(page)) << page;
  expect_all_right();
  EXPECT_EQ(held, 1);
  EXPECT_EQ(service->failure(), "");
  EXPECT_LT(service->stats().faults, kPages);
}

TEST_F(PageServiceTest, OnlyWhatIsTouchedIsRead) {
  begin();
  EXPECT_EQ(read_word(300), word_of(300));
  EXPECT_LE(service->stats().fault_pages, 20u);
}

TEST_F(PageServiceTest, WhoReadsOnGetsMoreEachTime) {
  begin();
  for (std::uint64_t page = 200; page < kPages; ++page) ASSERT_EQ(read_word(page), word_of(page));
  EXPECT_LE(service->stats().faults, 8u);
}

TEST_F(PageServiceTest, WhoReadsOrWritesOnInAHoleGetsMoreEachTime) {
  begin();
  for (std::uint64_t page = 100; page < 150; ++page) ASSERT_EQ(read_word(page), 0u);
  EXPECT_LE(service->stats().faults, 4u);
  for (std::uint64_t page = 150; page < 200; ++page) {
    ASSERT_EQ(read_word(page, 1), 0u);
    memory[page * kPage] = 7;
    ASSERT_EQ(read_word(page), 7u);
  }
  memory[199 * kPage] = memory[150 * kPage] = 0;
  for (std::uint64_t page = 151; page < 199; ++page) memory[page * kPage] = 0;
  EXPECT_LE(service->stats().faults, 8u);
  EXPECT_EQ(service->stats().fault_pages, 0u);
  expect_all_right();
}

TEST_F(PageServiceTest, WhatIsWrittenIntoAHoleStays) {
  begin();
  memory[150 * kPage + 100] = 7;
  EXPECT_EQ(memory[150 * kPage + 100], 7);
  for (std::uint64_t page = 140; page < 160; ++page) ASSERT_EQ(read_word(page), 0u);
  memory[150 * kPage + 100] = 0;
  expect_all_right();
}

TEST_F(PageServiceTest, ExactlyTheTouchedPagesAreRecordedAndReadAheadLater) {
  begin({}, true);
  for (std::uint64_t page : {5, 6, 300, 310, 402}) EXPECT_EQ(read_word(page), word_of(page));
  std::vector<TouchedRange> touched = merge_ranges(service->touched(false));
  std::uint64_t start = reinterpret_cast<std::uint64_t>(memory);
  ASSERT_EQ(touched.size(), 4u);
  EXPECT_EQ(touched[0].address, start + 5 * kPage);
  EXPECT_EQ(touched[0].length, 2 * kPage);
  EXPECT_EQ(touched[3].address, start + 402 * kPage);
  // A hole is in no image, and costs a fault all the same.
  EXPECT_EQ(read_word(150), 0u);
  EXPECT_EQ(service->touched(true).size(), 6u);
  // From then on it is as any other.
  std::uint64_t before = service->stats().fault_pages;
  EXPECT_EQ(read_word(450), word_of(450));
  EXPECT_GT(service->stats().fault_pages, before + 1);
  EXPECT_TRUE(service->touched(true).empty());
}

TEST_F(PageServiceTest, TheWorkingSetIsThereWithoutFaults) {
  std::uint64_t start = reinterpret_cast<std::uint64_t>(memory);
  begin({{7, start + 10 * kPage, 20 * kPage},
         {7, start + 90 * kPage, 20 * kPage},
         {7, start + 400 * kPage, 5 * kPage}});
  Deadline deadline = Deadline::after_ms(20'000);
  // Ten of them are zero, and in no image.
  while (service->stats().ahead_pages < 45 && !deadline.passed()) std::this_thread::yield();
  for (std::uint64_t page = 10; page < 30; ++page) EXPECT_EQ(read_word(page), word_of(page));
  for (std::uint64_t page = 90; page < 110; ++page) EXPECT_EQ(read_word(page), right_word(page));
  EXPECT_EQ(read_word(404), word_of(404));
  EXPECT_EQ(service->stats().faults, 0u);
  expect_all_right();
}

TEST_F(PageServiceTest, ThreadsFaultTogether) {
  begin();
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      for (std::uint64_t i = 0; i < kPages; ++i) {
        std::uint64_t page = (i * 37 + static_cast<std::uint64_t>(t) * 61) % kPages;
        if (read_word(page) != right_word(page)) ++wrong;
      }
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(PageServiceTest, GivenUpMemoryIsZeroAndUnmappedMemoryIsForgotten) {
  begin();
  EXPECT_EQ(read_word(210), word_of(210));
  ASSERT_EQ(::madvise(memory + 205 * kPage, 20 * kPage, MADV_DONTNEED), 0);
  for (std::uint64_t page = 205; page < 225; ++page) EXPECT_EQ(read_word(page), 0u) << page;
  EXPECT_EQ(read_word(225), word_of(225));
  ASSERT_EQ(::munmap(memory + 300 * kPage, 10 * kPage), 0);
  EXPECT_EQ(read_word(299), word_of(299));
  EXPECT_EQ(read_word(310), word_of(310));
}

// The first read makes the service copy what lies around it, which is given up at the same time.
TEST_F(PageServiceTest, MemoryGivenUpWhileItIsCopiedIsZero) {
  begin();
  for (std::uint64_t first = 200; first + 24 <= kPages; first += 24) {
    EXPECT_EQ(read_word(first + 8), word_of(first + 8));
    ASSERT_EQ(::madvise(memory + first * kPage, 24 * kPage, MADV_DONTNEED), 0);
    for (std::uint64_t page = first; page < first + 24; ++page)
      ASSERT_EQ(read_word(page), 0u) << page;
  }
}

TEST_F(PageServiceTest, MovedMemoryMovesWithItsContents) {
  begin();
  char* target = memory + (kPages + 50) * kPage;
  void* moved =
      ::mremap(memory + 220 * kPage, 30 * kPage, 30 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, target);
  ASSERT_EQ(moved, target);
  for (std::uint64_t i = 0; i < 30; ++i) {
    std::uint64_t word;
    std::memcpy(&word, target + i * kPage, sizeof word);
    ASSERT_EQ(word, word_of(220 + i)) << i;
  }
}

TEST_F(PageServiceTest, AForkedChildHasItsParentsUnreadMemory) {
  begin();
  EXPECT_EQ(read_word(3), word_of(3));
  pid_t child = plain_fork();
  if (child == 0) {
    for (std::uint64_t page = 0; page < kPages; ++page)
      if (read_word(page) != right_word(page)) ::_exit(1);
    ::_exit(0);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(held, 2);
  expect_all_right();
}

TEST_F(PageServiceTest, EndedChildrenAreForgotten) {
  begin();
  for (int i = 0; i < 100; ++i) {
    pid_t child = plain_fork();
    if (child == 0) ::_exit(read_word(7) == word_of(7) ? 0 : 1);
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
  }
  EXPECT_EQ(read_word(400), word_of(400));
  EXPECT_LE(service->stats().spaces, 32u);
}

TEST_F(PageServiceTest, DrainReadsAllAndLetsGo) {
  begin();
  EXPECT_EQ(read_word(300), word_of(300));
  ASSERT_TRUE(service->drain(Deadline::after_ms(20'000)));
  EXPECT_EQ(service->stats().unread_bytes, 0u);
  expect_all_right();
}

TEST_F(PageServiceTest, TheRestIsReadAtLeisure) {
  begin({}, false, true);
  EXPECT_EQ(read_word(300), word_of(300));
  Deadline deadline = Deadline::after_ms(20'000);
  while (service->stats().unread_bytes && !deadline.passed()) ::usleep(1000);
  EXPECT_EQ(service->stats().unread_bytes, 0u);
  std::uint64_t asked_for = service->stats().fault_pages;
  expect_all_right();
  EXPECT_EQ(service->stats().fault_pages, asked_for);
  // Then a drain has nothing to do.
  EXPECT_TRUE(service->drain(Deadline::after_ms(20'000)));
}

// mprotect splits the mapping without a word; a copy must not cross the ends of the parts.
TEST_F(PageServiceTest, MemoryWhoseMappingWasSplitIsDrained) {
  begin();
  EXPECT_EQ(read_word(3), word_of(3));
  for (std::uint64_t page : {50, 250, 251, 400})
    ASSERT_EQ(::mprotect(memory + page * kPage, kPage, PROT_READ), 0);
  ASSERT_TRUE(service->drain(Deadline::after_ms(20'000)));
  expect_all_right();
}

TEST_F(PageServiceTest, MemoryWhoseMappingWasSplitIsReadAtLeisure) {
  begin({}, false, true);
  EXPECT_EQ(read_word(3), word_of(3));
  for (std::uint64_t page : {50, 250, 251, 400})
    ASSERT_EQ(::mprotect(memory + page * kPage, kPage, PROT_READ), 0);
  Deadline deadline = Deadline::after_ms(20'000);
  while (service->stats().unread_bytes && !deadline.passed()) ::usleep(1000);
  expect_all_right();
}

TEST_F(PageServiceTest, MemoryWhoseMappingWasSplitIsReadAhead) {
  std::uint64_t start = reinterpret_cast<std::uint64_t>(memory);
  for (std::uint64_t page : {220, 230})
    ASSERT_EQ(::mprotect(memory + page * kPage, kPage, PROT_READ), 0);
  begin({{7, start + 210 * kPage, 40 * kPage}});
  Deadline deadline = Deadline::after_ms(20'000);
  while (service->stats().ahead_pages < 40 && !deadline.passed()) std::this_thread::yield();
  EXPECT_EQ(service->stats().ahead_pages, 40u);
  expect_all_right();
}

// A page that is given up while its fault is answered has nobody who copies it: whoever waits for
// it must be woken, or waits for ever.
TEST_F(PageServiceTest, AFaultOnMemoryThatIsBeingGivenUpIsAnswered) {
  begin();
  std::atomic<std::uint64_t> front{200};
  std::thread giver([&] {
    for (std::uint64_t page = 200; page < kPages; ++page) {
      while (front < page) std::this_thread::yield();
      ::madvise(memory + page * kPage, kPage, MADV_DONTNEED);
    }
  });
  for (std::uint64_t page = 200; page < kPages; ++page) {
    front = page;
    std::uint64_t word = read_word(page);
    EXPECT_TRUE(word == 0 || word == word_of(page)) << page << ": " << word;
  }
  giver.join();
  for (std::uint64_t page = 200; page < kPages; ++page) EXPECT_EQ(read_word(page), 0u) << page;
}

// What is moved to an address that is being copied is unread there, whatever was copied before.
TEST_F(PageServiceTest, MemoryMovedToWhereItIsCopiedIsRead) {
  begin();
  EXPECT_EQ(read_word(3), word_of(3));
  std::atomic<bool> drained{false};
  std::thread drain([&] { drained = service->drain(Deadline::after_ms(20'000)); });
  // The pages before the hole are there: those behind it are being copied.
  while (service->stats().unread_bytes > 312 * kPage) {
  }
  void* target = memory + 200 * kPage;
  void* moved =
      ::mremap(memory + 500 * kPage, 4 * kPage, 4 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, target);
  drain.join();
  ASSERT_EQ(moved, target);
  ASSERT_TRUE(drained);
  for (std::uint64_t i = 0; i < 4; ++i) ASSERT_EQ(read_word(200 + i), word_of(500 + i)) << i;
}

TEST_F(PageServiceTest, ARangeOfAProcessThatIsGoneHoldsNobodyUp) {
  std::uint64_t start = reinterpret_cast<std::uint64_t>(memory);
  begin({{6, start, 5 * kPage}, {7, start + 300 * kPage, 5 * kPage}}, false, true);
  EXPECT_EQ(read_word(3), word_of(3));
  Deadline deadline = Deadline::after_ms(20'000);
  while (service->stats().unread_bytes && !deadline.passed()) ::usleep(1000);
  EXPECT_EQ(service->stats().ahead_pages, 5u);
  expect_all_right();
}

TEST_F(PageServiceTest, NothingIsReadAtLeisureWhileItRests) {
  begin({}, false, true);
  service->rest(true);
  EXPECT_EQ(read_word(300), word_of(300));
  ::usleep(100'000);
  EXPECT_GT(service->stats().unread_bytes, 0u);
  service->rest(false);
  Deadline deadline = Deadline::after_ms(20'000);
  while (service->stats().unread_bytes && !deadline.passed()) ::usleep(1000);
  EXPECT_EQ(service->stats().unread_bytes, 0u);
}

TEST_F(PageServiceTest, ImagesThatMakeNoSenseAreAnError) {
  write_file(base + "/pages-1.img", std::string(10 * kPage, 'x'));
  EXPECT_THROW(read_process_memory(base, 7), Error);
  write_file(base + "/pagemap-7.img", read_file(base + "/pagemap-7.img").substr(0, 30));
  EXPECT_THROW(read_process_memory(base, 7), Error);
  EXPECT_THROW(read_process_memory(base, 8), Error);
}

}  // namespace
}  // namespace thaw::checkpoint
