// One client's connection to the shared port: its requests, one after another.
#pragma once

#include "front/departures.h"
#include "front/front.h"
#include "front/reach.h"
#include "front/stream.h"

#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <string>
#include <vector>

namespace thaw::front {

struct Shared {  // of all sessions; outlives them
  gateway::Gateway& gateway;
  asio::io_context& io;
  const Options& options;
  const Routes& routes;
  Departures& departures;
  std::int64_t complained_us = 0, unsaid = 0;  // of failed requests
  bool leaving = false;                        // another daemon is to serve the next requests
};

class Session : public std::enable_shared_from_this<Session> {
 public:
  // `refused`: it only hears that there are too many.
  Session(Shared& shared, std::unique_ptr<Stream> client, const sockaddr_storage& address,
          const sockaddr_storage& server, bool refused);
  void start(std::function<void()> ended);
  void close();  // whatever it is doing ends

 private:
  struct Exchange;
  struct Upload;

  Task<> run();
  Task<bool> one_request();
  Task<bool> serve(Exchange& exchange);
  void tell(const Exchange& exchange, std::int64_t begin_us, const std::string& failure);
  Task<bool> forward(Exchange& exchange);
  Task<> upload(std::shared_ptr<Upload> work);
  Task<> wait_for(Upload& work);
  Task<bool> hear_more();
  Task<bool> download(Exchange& exchange, Upload& work);
  Task<bool> answer_body(Exchange& exchange);
  Task<> tunnel(Exchange& exchange);
  Task<> copy_up(Socket& upstream, std::shared_ptr<Upload> work);
  Task<bool> reply(Exchange& exchange, int status, const std::string& text, int retry_after_s = 0);
  Task<> hear_out();
  Task<error_code> say(std::string_view a, std::string_view b = {}, std::string_view c = {});
  Task<std::size_t> hear(error_code& error);

  void within(std::int64_t us);  // something must happen in this time
  void watch();

  Shared& shared_;
  std::unique_ptr<Stream> client_;
  const sockaddr_storage address_, server_;
  const bool refused_;
  std::string address_text_;
  std::string in_;  // bytes of the client that were read and not yet used
  std::vector<char> scratch_;
  asio::steady_timer timer_;
  std::int64_t deadline_us_ = 0;
  bool ended_ = false;
  bool broken_ = false;         // an answer was cut off
  Socket* upstream_ = nullptr;  // while a request is with a replica
};

}  // namespace thaw::front
